"""Fine-tuning: a head on a backbone, trained with the stages that are not frozen."""

"""Running samples through the leading stages of backbones, each sample once."""

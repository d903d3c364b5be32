"""Reading of samples and their conversion to the input tensors of networks."""

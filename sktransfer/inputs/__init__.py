"""What a sample is, and how it becomes the input tensor of a network."""

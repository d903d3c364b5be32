"""Pretrained networks as rows of named stages."""

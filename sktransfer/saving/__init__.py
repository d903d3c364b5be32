"""Fitted estimators as files, ONNX graphs and model cards."""

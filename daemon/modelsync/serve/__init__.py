"""The inference server: the Open Inference Protocol over what LIVE offers."""

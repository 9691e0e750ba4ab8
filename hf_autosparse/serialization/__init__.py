"""Files: the packed format, saved models found and read, `from_pretrained` for packed ones."""

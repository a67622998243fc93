"""Sources of patient records, one module per modality."""

"""Models of other projects: their files, names and tokenizers, read and written."""

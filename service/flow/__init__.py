"""The product read as a sentence, one file a step; a later step may import an earlier one, never the reverse."""

"""From files to packed batches: record -> spans -> example -> rows -> VLMBatch."""

"""The interface of VLMEvalKit."""

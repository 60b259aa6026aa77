supported_VLM = {"taken": None}

class BaseModel:
    INTERLEAVE = False
    allowed_types = ("text", "image")

    def use_custom_prompt(self, dataset):
        return False

    def set_dump_image(self, dump_image):
        self.dump_image_func = dump_image

    def generate(self, message, dataset=None):
        assert all(item["type"] in self.allowed_types for item in message)
        return self.generate_inner(message, dataset)

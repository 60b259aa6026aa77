from __future__ import annotations

import abc
from typing import Any


class CacheHook:
    def add_partial(self, attribute: str, request: Any, result: Any) -> None:
        pass


class lmms(abc.ABC):
    is_simple = True

    def __init__(self) -> None:
        self._rank, self._world_size = 0, 1
        self.cache_hook = CacheHook()
        self.task_dict: dict[str, Any] = {}

    @staticmethod
    def _resolve_system_prompt(value: str) -> str:
        return value

    @abc.abstractmethod
    def loglikelihood(self, requests): ...

    @abc.abstractmethod
    def generate_until(self, requests): ...

    @abc.abstractmethod
    def generate_until_multi_round(self, requests): ...

    @classmethod
    def create_from_arg_string(cls, text: str, additional_config: dict[str, Any]):
        given = dict(pair.split("=", 1) for pair in text.split(","))
        given = {name: int(value) if value.isdecimal() else value for name, value in given.items()}
        return cls(**given, **{k: v for k, v in additional_config.items() if v is not None})

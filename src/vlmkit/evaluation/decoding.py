"""How answers are drawn, and how many pixels and frames the model may look at."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from vlmkit.data.processor import Processor
from vlmkit.errors import ConfigError
from vlmkit.models import generation
from vlmkit.models.generation import Sampling


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """How each question is answered.

    Attributes:
        max_new_tokens: of an answer; one that reaches it is counted as cut off.
        sampling: greedy by default; each question and each sample has a stream of draws of its own, made of
            the seed, the question's key and the sample's number.
        samples: answers to each question.
        stop: strings that end an answer and are no part of it.
    """

    max_new_tokens: int = 64
    sampling: Sampling = field(default_factory=Sampling)
    samples: int = 1
    stop: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ConfigError: names the field.
        """
        object.__setattr__(self, "stop", tuple(self.stop))
        for name in ("max_new_tokens", "samples"):
            if getattr(self, name) < 1:
                raise ConfigError(f"decoding.{name} is {getattr(self, name)}; it must be positive")
        if self.samples > 1 and self.sampling.temperature == 0:
            raise ConfigError(
                f"decoding.samples={self.samples} with decoding.sampling.temperature=0: greedy answers "
                "are all the same; take one sample, or a temperature"
            )

    def of_question(self, key: str) -> generation.Decoding:
        """How one question is answered, whatever stands beside it."""
        digest = hashlib.blake2b(f"{self.sampling.seed} {key}".encode(), digest_size=4).digest()
        sampling = replace(self.sampling, seed=int.from_bytes(digest, "little"))
        return generation.Decoding(
            max_new_tokens=self.max_new_tokens, sampling=sampling, stop=self.stop
        )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Pixels and frames that a benchmark allows; what is not named stays as in training.

    Attributes:
        image: fields of `ImageTransform`, such as `{"max_pixels": 1048576}`.
        video: fields of `VideoTransform`, such as `{"fps": 2.0, "max_frames": 512}`.
    """

    image: Mapping[str, float] = field(default_factory=dict)
    video: Mapping[str, float] = field(default_factory=dict)

    def applied_to(self, processor: Processor) -> Processor:
        """The processor under this budget; itself where nothing is named.

        Raises:
            ConfigError: there is no such field.
        """
        if not self.image and not self.video:
            return processor
        changed = copy.copy(processor)
        for name in ("image", "video"):
            transform, fields = getattr(processor, name), dict(getattr(self, name))
            if unknown := sorted(set(fields) - set(vars(transform))):
                raise ConfigError(
                    f"budget.{name}.{unknown[0]}: there is no such setting; there are "
                    f"{', '.join(sorted(vars(transform)))}"
                )
            setattr(changed, name, replace(transform, **fields))
        return changed

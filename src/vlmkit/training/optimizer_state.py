"""An optimiser's state by the names of parameters instead of their places."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from vlmkit.checkpoint.later_tensor import AnyTensor
from vlmkit.errors import CheckpointError, listed

StateDict = dict[str, Any]


def split_states(states: Sequence[StateDict]) -> tuple[dict[str, AnyTensor], list[StateDict]]:
    """Divide what `Optimizer.state_dict` returns into tensors and the rest.

    Args:
        states: one per optimiser, each made from named parameters.

    Returns:
        Tensors by `<parameter>/<slot>`, such as `decoder.norm.weight/exp_avg`; and per optimiser its
        `groups` and those `slots` that are no tensors.

    Raises:
        CheckpointError: parameters have no names, or two have the same.
    """
    tensors: dict[str, AnyTensor] = {}
    plain: list[StateDict] = []
    every: Counter[str] = Counter()
    for number, state in enumerate(states):
        names: dict[int, str] = {}
        for group in state["param_groups"]:
            if "param_names" not in group:
                raise CheckpointError(
                    f"optimiser {number} knows its parameters only by their places: construct it from "
                    "(name, parameter) pairs, so that a checkpoint can name them"
                )
            names |= zip(group["params"], group["param_names"], strict=True)
        every.update(names.values())
        slots: dict[str, StateDict] = {}
        for place, values in state["state"].items():
            for slot, value in values.items():
                if isinstance(value, AnyTensor):
                    tensors[f"{names[place]}/{slot}"] = value
                else:
                    slots.setdefault(names[place], {})[slot] = value
        groups = [_hyper_parameters(group) for group in state["param_groups"]]
        for group, whole in zip(groups, state["param_groups"], strict=True):
            group["param_names"] = list(whole["param_names"])
        plain.append({"groups": groups, "slots": slots})
    if twice := [name for name, count in every.items() if count > 1]:
        raise CheckpointError(f"several parameters of optimisers have one name: {listed(twice)}")
    return tensors, plain


def join_states(tensors: Mapping[str, Tensor], plain: Sequence[StateDict]) -> list[StateDict]:
    """The inverse of `split_states`."""
    by_name: dict[str, StateDict] = {}
    for key, tensor in tensors.items():
        name, _, slot = key.rpartition("/")
        by_name.setdefault(name, {})[slot] = tensor
    states = []
    for part in plain:
        state: dict[int, StateDict] = {}
        groups = []
        first = 0
        for group in part["groups"]:
            places = range(first, first + len(group["param_names"]))
            first = places.stop
            groups.append({**group, "params": list(places)})
            for place, name in zip(places, group["param_names"], strict=True):
                if slots := by_name.get(name, {}) | part["slots"].get(name, {}):
                    state[place] = slots
        states.append({"state": state, "param_groups": groups})
    return states


def match_by_name(optimizer: Optimizer, state_dict: StateDict) -> StateDict:
    """Rearrange a state so that each parameter gets the one of its name.

    For `optimizer.register_load_state_dict_pre_hook`. A group of the same parameters keeps the
    hyper-parameters of the state, as in torch; one that is composed otherwise keeps its own.

    Raises:
        CheckpointError: a parameter is missing on either side, or the state is of another kind of
            optimiser.
    """
    saved = state_dict["param_groups"]
    own = optimizer.param_groups
    if not all("param_names" in group for group in (*saved, *own)):
        raise CheckpointError(
            "an optimiser and its saved state are matched by names: construct the optimiser from "
            "(name, parameter) pairs"
        )
    _check_kind(own, saved)
    stored = {
        name: place
        for group in saved
        for name, place in zip(group["param_names"], group["params"], strict=True)
    }
    wanted = [name for group in own for name in group["param_names"]]
    _check_names(wanted, stored)
    values = {name: state_dict["state"].get(place, {}) for name, place in stored.items()}
    alike = {frozenset(group["param_names"]): group for group in saved}
    state: dict[int, StateDict] = {}
    groups: list[StateDict] = []
    for group in own:
        names = group["param_names"]
        first = sum(len(other["params"]) for other in groups)
        places = range(first, first + len(names))
        state |= {place: values[n] for place, n in zip(places, names, strict=True) if values[n]}
        saved_settings = _hyper_parameters(alike.get(frozenset(names), {}))
        configured = {key: group[key] for key in _CONFIGURED if key in group}
        settings = _hyper_parameters(group) | saved_settings | configured
        groups.append({**settings, "params": list(places), "param_names": list(names)})
    return {**state_dict, "state": state, "param_groups": groups}


_CONFIGURED = ("initial_lr", "weight_decay", "betas", "eps", "momentum")
"""What a run that goes on takes from its config, not from the checkpoint. Rates are the schedule's."""


def _hyper_parameters(group: Mapping[str, Any]) -> StateDict:
    return {key: value for key, value in group.items() if key not in ("params", "param_names")}


def _check_kind(own: Sequence[StateDict], saved: Sequence[StateDict]) -> None:
    """Refuse moments that mean something else. A later torch may add settings, but on one side only."""
    ours = {key for group in own for key in group}
    theirs = {key for group in saved for key in group}
    if ours - theirs and theirs - ours:
        raise CheckpointError(
            f"the checkpoint is of another kind of optimiser: it has {listed(sorted(theirs - ours))}, "
            f"this one has {listed(sorted(ours - theirs))}. Train with the same optimiser, or start from "
            "the weights alone"
        )


def _check_names(wanted: Sequence[str], stored: Mapping[str, int]) -> None:
    missing = [name for name in wanted if name not in stored]
    unexpected = sorted(stored.keys() - set(wanted))
    if missing or unexpected:
        raise CheckpointError(
            "the optimiser trains other parameters than the checkpoint's: "
            f"without saved state: {listed(missing) or 'none'}; "
            f"no longer trained: {listed(unexpected) or 'none'}. "
            "Train the same parts, or start from the weights alone"
        )

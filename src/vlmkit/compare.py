"""Is one model better than another? Evaluations of the same questions, compared question by question.

python -m vlmkit.compare a=<folder of evaluations> b=<another>
python -m vlmkit.compare a=<...> b=<...> different=true      # also where more than the model differs

A folder is what `python -m vlmkit.evaluate` has written: `<run>/evaluations`, or one of the folders in it.
"""

from __future__ import annotations

import vlmkit.threads  # isort: skip  # noqa: F401  (before torch)

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console

from vlmkit.build import entry_point
from vlmkit.errors import ConfigError
from vlmkit.evaluation.comparison import only_in_one, paired
from vlmkit.evaluation.report.comparison_page import save_comparison
from vlmkit.evaluation.tables import comparison_table, print_whole


@entry_point("compare", free_text=("name_a", "name_b"))
def main(config: DictConfig) -> None:
    """Compare, print, write."""
    for key in ("a", "b"):
        if config[key] is None:
            raise ConfigError(f"{key}: give a folder of evaluations, as in a=<folder> b=<folder>")
        if not Path(config[key]).is_dir():
            raise ConfigError(f"{key}={config[key]}: there is no such folder")
    a, b = Path(config.a), Path(config.b)
    rows = paired(a, b, different=config.different, seed=config.seed)
    names = str(config.name_a or a), str(config.name_b or b)
    console = Console()
    console.print(f"a: {names[0]}\nb: {names[1]}", highlight=False, soft_wrap=True)
    print_whole(comparison_table(rows))
    for row in rows:
        for line in row.differences:
            console.print(f"{row.benchmark}: not the same protocol: {line}", soft_wrap=True)
    for key, left_out in zip("ab", only_in_one(a, b), strict=True):
        if left_out:
            print(f"only in {key}: {', '.join(left_out)}")
    page = save_comparison(rows, names, Path(config.out))
    print(f"comparison: {page}")


if __name__ == "__main__":
    main()

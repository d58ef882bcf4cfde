"""Prints README's first or second command, word for word, so that what CI runs is what README says.

python .ci/readme_commands.py 1|2
"""

import re
import sys
from pathlib import Path


def blocks() -> list[str]:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    return [b for b in re.findall(r"```bash\n(.*?)```", text, re.S) if "pip install" in b][:2]


if __name__ == "__main__":
    print(blocks()[int(sys.argv[1]) - 1], end="")

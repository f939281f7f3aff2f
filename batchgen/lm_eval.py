"""`python -m batchgen.lm_eval`: lm-evaluation-harness's own command line, which knows the model `batchgen`.

python -m batchgen.lm_eval run --model batchgen --model_args pretrained=MODEL,work=DIR --tasks hellaswag
"""

import sys

from .errors import JobError, MachineError, Stopped


def main() -> None:
    try:
        from lm_eval.__main__ import cli_evaluate
    except ImportError:
        sys.exit("batchgen: lm-eval is not installed: pip install 'lm_eval==0.4.13'")
    from .commands import harness  # noqa: F401  # the harness finds the model by its name

    try:
        cli_evaluate()
    except Stopped as why:
        print(f"batchgen: {why}; run the same command again", file=sys.stderr)
        sys.exit(75)
    except (JobError, MachineError) as error:
        sys.exit(f"batchgen: {error}")


if __name__ == "__main__":
    main()

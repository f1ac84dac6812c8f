"""``batchsweep prepare``."""

from __future__ import annotations

from batchsweep.cli.options import ConfigFile, Strict


def command(config: ConfigFile, strict: Strict = False) -> None:
    """Write the corpus and the frozen plan into the store (CPU, once).

    Run it again after adding models or revisions: new indexes are appended and
    old ones stay where they are.

    example:
      batchsweep prepare --config configs/quick.yaml
    """
    from batchsweep.config import load
    from batchsweep.plan.prepare import prepare

    sweep = load(config)
    _, plan, summary = prepare(sweep, strict=strict)
    asked = f"{summary.asked:,} asked for" if summary.asked != summary.texts else "each asked once"
    print(f"corpus: {summary.texts:,} unique texts ({asked}) of {len(summary.tasks)} tasks")
    for tokenizer, tokens in summary.tokens.items():
        cut = summary.cut[tokenizer]
        note = f"; {cut:,} texts cut at max_length" if cut else ""
        print(f"tokens: {tokens:,} by tokenizer {tokenizer}{note}")
    arms = plan.arms(sweep.embedding.transforms)
    print(f"plan:   {len(plan.entries)} indexes, {len(arms):,} arms")
    print(f"next:   batchsweep extract --config {config} --all   (or --index N on each pod)")

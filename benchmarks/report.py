"""Markdown tables of what ``pytest benchmarks --benchmark-json=FILE`` wrote: ``python -m benchmarks.report FILE``."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from benchmarks import machine

#: Columns of the operators' table, in this order, where something was measured.
RIVALS = ("eager", "compiled", "official", "kornia", "dsntnn")

Info = dict
Key = tuple[str, int, str, str, str]


def read(path: Path) -> list[Info]:
    """What each benchmark kept beside its times.

    Raises:
        ValueError: if this is no file of these benchmarks.
    """
    try:
        runs = json.loads(path.read_text())["benchmarks"]
        infos = [run["extra_info"] for run in runs]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: no result of pytest --benchmark-json ({error!r})") from error
    return [info for info in infos if "machine" in info]


def table(header: list[str], rows: list[list[str]]) -> str:
    """A markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def operators(infos: list[Info]) -> str:
    """One line a group: our time, how near it is to the limit, and how many times as long each rival takes."""
    groups: dict[Key, dict[str, Info]] = {}
    for info in infos:
        if "operator" in info:
            key = tuple(info[name] for name in ("operator", "batch", "dtype", "layout", "device"))
            groups.setdefault(key, {})[info["rival"]] = info
    rivals = [name for name in RIVALS if any(name in group for group in groups.values())]
    on_cuda = any("share_of_copy_bandwidth" in group["ours"] for group in groups.values() if "ours" in group)
    header = ["operator", "batch", "dtype", "layout", "ours, ms", "of the limit", *(["of a copy"] if on_cuda else [])]
    rows = [_operator_row(key, group, rivals, on_cuda) for key, group in groups.items() if "ours" in group]
    return table([*header, *rivals], rows) if rows else ""


def _operator_row(key: Key, group: dict[str, Info], rivals: list[str], on_cuda: bool) -> list[str]:
    ours = group["ours"]
    times = [f"{group[name]['times_ours']:.1f}x" if name in group else "" for name in rivals]
    row = [str(part) for part in key[:4]]
    row += [f"{ours['milliseconds']:.3f}", f"{ours['share_of_limit']:.0%}"]
    if on_cuda:
        row.append(f"{ours['share_of_copy_bandwidth']:.0%}" if "share_of_copy_bandwidth" in ours else "")
    return row + times


def throughput(infos: list[Info]) -> str:
    """Pictures a second of the loaders."""
    rows = [
        [info["device"], info["rival"], f"{info['images_per_second']:.0f}", f"{info['times_opencv']:.2f}x"]
        for info in infos
        if info.get("data") == "throughput"
    ]
    return table(["device", "loader", "images/s", "of OpenCV's"], rows) if rows else ""


def stages(infos: list[Info]) -> str:
    """Where the time of a picture goes."""
    found = [info for info in infos if info.get("data") == "stages"]
    if not found:
        return ""
    names = list(found[0]["share"])
    rows = [
        [
            info["rival"],
            *(f"{info['milliseconds_per_image'][name]:.3f} ms ({info['share'][name]:.0%})" for name in names),
        ]
        for info in found
    ]
    return table(["per image", *names], rows)


def inference(infos: list[Info]) -> str:
    """From pictures to 3D joints: time of a picture, and how many times as fast as the official way."""
    rows = [
        [
            str(info["batch"]),
            info["device"],
            info["rival"],
            f"{info['milliseconds_per_image']:.1f}",
            f"{info['images_per_second']:.1f}",
            f"{info['times_official']:.2f}x",
            f"{info['bar']:g}x" if info.get("bar") else "",
        ]
        for info in infos
        if "inference" in info
    ]
    header = ["batch", "device", "pipeline", "ms an image", "images/s", "times the official speed", "bar"]
    return table(header, rows) if rows else ""


def render(infos: list[Info]) -> str:
    """The whole report."""
    where = list(dict.fromkeys(machine.sentence(info["machine"]) for info in infos))
    parts = [*where, operators(infos), throughput(infos), stages(infos), inference(infos)]
    return "\n\n".join(part for part in parts if part)


def main() -> int:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("file", type=Path, help="from pytest benchmarks --benchmark-json=FILE")
    try:
        infos = read(parser.parse_args().file)
    except (OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 1
    print(render(infos))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A workspace in which everything has a name that wants to be more than a name."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from support.stored_results import QUALITY, REPAIRED, REPLIES, RESULTS, RUN, SAID

from ders_core.jobs import JobStore, Workspace
from ders_core.jobs.claims import Claims
from ders_core.recipe import presets

NAME = (
    "![x](pixel.png) :red[FAKED] :smile: :streamlit: **b** `c` $x^2$ www.evil.test a -> b "
    "<img src=pixel.png> [l](pixel) a@evil.test &lt; -- z <b>y<b> ~~s~~ _u_"
)
"""What each kind of markup would make of it: a picture, colour, an emoji, bold type, code, math,
links, an arrow, an entity. Without a slash, so that a directory can have it."""

LONG_NAME = f"{NAME} :material/home: ![y](http://evil.test/pixel.png) http://evil.test/pixel"

RECIPE = "![x](pixel.png) :red[FAKED] :smile: **b** `c` $x^2$ www.evil.test -> [l](pixel)"
"""The same in the 80 characters that a recipe's name may have."""


RECIPES = {
    "markup in a name": f"name: a\nothers: {{codec: lossless, names: [{json.dumps(LONG_NAME)}]}}\n",
    "markup in a key": f"# {LONG_NAME}\nname: a\n{json.dumps(LONG_NAME)}: 1\n",
    "controls": 'name: a\nothers: {codec: lossless, names: ["\\e[31m\\u202e\\0\\n"]}\n',
    "a surrogate": 'name: "\\ud800 :red[FAKED]"\n',
    "long layers": f"name: a\nothers: {{codec: lossless, layers: '{'7,' * 30_000}7'}}\n",
    "a long codec": f"name: a\nothers: {{codec: {'x' * 70_000}}}\n",
    "a calibration": "version: 2\nname: a\nbudget: {kl: 1}\ncalibration: '![x](evil.test/y)'\n",
}
"""Of which the last alone can be read; it needs what is not there."""


def hostile_workspace(path: Path, moe: Path, dense: Path) -> None:
    """Make it: an open checkpoint, a dense model, recipes, and jobs that have ended.

    moe, dense: checkpoints to copy.
    """
    workspace = Workspace(path)
    store = JobStore(workspace.store_path)
    checkpoint, parent = path / NAME / "moe", path / NAME / f"dense {NAME}"
    for source, target in ((moe, checkpoint), (dense, parent)):
        shutil.copytree(source, target)
    config = json.loads((checkpoint / "config.json").read_text())
    config["model_type"] = LONG_NAME
    (checkpoint / "config.json").write_text(json.dumps(config))
    recipe = presets()["quantized-2bit"].model_copy(update={"name": RECIPE}).to_yaml()
    workspace.recipes.mkdir()
    (workspace.recipes / "hostile.yaml").write_text(f"# {LONG_NAME}\n{recipe}")
    for number, text in enumerate(RECIPES.values()):
        (workspace.recipes / f"{number} {RECIPE}.yaml").write_text(text)
    opened = {"checkpoint": str(checkpoint), "recipe": recipe, "recent": [str(checkpoint)]}
    (path / "studio.json").write_text(json.dumps(opened | {"dense": str(parent)}))
    claims = Claims(store.path, "ended")
    claims.announce(os.getpid())
    noted = f"# {LONG_NAME}\n{recipe}"
    run = {"checkpoint": str(checkpoint), "recipe": noted, "name": LONG_NAME}
    for number, packed in enumerate(("gone before", "gone")):
        store.submit("run", run, f"{number} {LONG_NAME}")
        claim = claims.claim()
        assert claim is not None
        result = RUN | {"packed": str(path / NAME / packed), "quality": QUALITY}
        claim.complete(result | {"bytes_after": 300 + number, "device": LONG_NAME})
    export = {"packed": str(path / NAME / "gone"), "out": str(path / NAME / "out")}
    store.submit("export", export, LONG_NAME)
    claim = claims.claim()
    assert claim is not None
    check = {"name": LONG_NAME, "ok": True, "detail": LONG_NAME}
    claim.complete({"out": export["out"], "format": "packed", "bytes": 300, "checks": [check]})
    analysis = {"checkpoint": str(checkpoint)}
    upcycle = {"dense": str(parent), "config": "name: x", "name": LONG_NAME}
    repair = {"checkpoint": str(path / NAME / "gone"), "original": str(checkpoint)}
    repair |= {"text": LONG_NAME, "name": LONG_NAME}
    store.submit("repair", repair, LONG_NAME)
    claim = claims.claim()
    assert claim is not None
    figures = REPAIRED | {"trained": {LONG_NAME: 1}, "left_out": [LONG_NAME], "resumed": LONG_NAME}
    claim.complete(RESULTS["repair"][0] | {"repaired": figures})
    ask = {"packed": str(path / NAME / "gone"), "original": str(checkpoint)}
    ask |= {"prompt": LONG_NAME, "name": LONG_NAME}
    failing = {"run": run, "analyze": analysis, "upcycle": upcycle, "repair": repair, "ask": ask}
    for kind, spec in failing.items():
        store.submit(kind, spec, LONG_NAME)
        claim = claims.claim()
        assert claim is not None
        claim.fail(f"it does not work: {LONG_NAME}")
    store.submit("ask", ask)
    claim = claims.claim()
    assert claim is not None
    said = SAID | {"text": LONG_NAME, "other": LONG_NAME}
    reply = {"tokens": [SAID | {"text": f"<b>y</b>{LONG_NAME}"}, said], "ended": True}
    foreign = REPLIES | {"prompt": LONG_NAME, "dtype": LONG_NAME, "device": LONG_NAME}
    claim.complete(foreign | {"original": reply, "compressed": reply})
    claims.leave()

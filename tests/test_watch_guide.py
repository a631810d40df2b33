import re
from pathlib import Path

import pytest

GUIDE = Path(__file__).parents[1] / "docs" / "guides" / "watch.md"


@pytest.mark.filterwarnings("ignore")
def test_the_guide_runs_from_top_to_bottom(tmp_path, monkeypatch):
    """A user who copies the guide's snippets gets an error."""
    pytest.importorskip("lightning")
    monkeypatch.chdir(tmp_path)
    snippets = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(snippets) >= 5
    exec(compile("\n".join(snippets), str(GUIDE), "exec"), {"__name__": "guide"})
    assert (tmp_path / "watch.png").stat().st_size > 1000


def test_the_guides_own_probe_passes_the_conformance_checks(tmp_path, monkeypatch):
    """The guide teaches a probe that Assay itself refuses."""
    import assay.testing

    text = GUIDE.read_text(encoding="utf-8")
    snippet = next(s for s in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if "class MeanMargin" in s)
    space = {"__name__": __name__}
    exec("import torch\n" + snippet.split("\nwatch =")[0], space)
    monkeypatch.setitem(globals(), "MeanMargin", space["MeanMargin"])
    assay.testing.check("probes", space["MeanMargin"], skip={"refuses-bad-labels", "pickles"})

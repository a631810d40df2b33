"""Name-specs: what they resolve to, and that nothing in them is ever evaluated."""

from __future__ import annotations

import ast
import builtins
import string
import subprocess
import sys

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from assay.errors import AssayError, InvalidInput, UnknownName
from assay.names import Spec, known, parse, resolve

literals = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-1000, 1000)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(string.printable, max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.tuples(inner, inner) | st.dictionaries(st.text("ab", min_size=1), inner)
    ),
    max_leaves=4,
)
names = st.from_regex(r"[a-z][a-z0-9]{0,5}(-[a-z0-9]{1,4}){0,2}", fullmatch=True)
arguments = st.from_regex(r"[a-z]{1,5}", fullmatch=True).filter(lambda s: s.isidentifier() and not _is_keyword(s))


def _is_keyword(word: str) -> bool:
    import keyword

    return keyword.iskeyword(word)


@given(names, st.lists(literals, max_size=2), st.dictionaries(arguments, literals, max_size=3))
@settings(max_examples=50)
def test_a_spec_survives_being_written_and_read(name, args, kwargs):
    """Any spec of literals must come back as it was; a lossy parser would train with other settings than asked."""
    spec = Spec(name, tuple(args), kwargs)
    assert parse(str(spec)) == spec


@given(st.text(max_size=60) | st.from_regex(r"[a-z-]{1,8}\(.{0,40}\)", fullmatch=True))
@example("f(__import__('os').system('echo'))")
@example("f(a=[x for x in (1,)])")
@example("f(*(1, 2))")
@example("f()(1)")
@example("f(1) + g(2)")
@example("f(lambda: 1)")
@example("f(a:=3)")
@example("f(" + "(" * 200 + ")" * 200 + ")")
@settings(max_examples=200)
def test_no_text_is_ever_evaluated(text):
    """Whatever the text, parsing gives literals or one AssayError and calls neither eval, exec nor an import."""
    forbidden = []
    guarded = {name: getattr(builtins, name) for name in ("eval", "exec")}
    try:
        for name in guarded:
            setattr(builtins, name, lambda *a, **k: forbidden.append(a))
        try:
            spec = parse(text)
        except AssayError as error:
            assert "\n" not in str(error) or "\n" in text
        else:
            ast.literal_eval(repr(spec.args)), ast.literal_eval(repr(spec.kwargs))
    finally:
        for name, function in guarded.items():
            setattr(builtins, name, function)
    assert not forbidden


def test_a_seam_falls_back_to_torch():
    """Where Assay has no such name, torch's own must be found, with its arguments bound."""
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = resolve("optim", "adamw(lr=1e-3, betas=(0.9, 0.95))")([parameter])
    assert isinstance(optimizer, torch.optim.AdamW)
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    assert resolve("losses", "cross-entropy") is torch.nn.CrossEntropyLoss
    assert resolve("schedules", "cosine-annealing(T_max=3)").func is torch.optim.lr_scheduler.CosineAnnealingLR


def test_every_kind_of_data_set_has_a_name():
    """Images, tables, text and graphs are loaded by name; helpers of the same folder are not."""
    names = known("data")
    assert {"digits", "wine", "tinyshakespeare", "stdlib-text", "cora", "modular-arithmetic"} <= set(names)
    assert not {"batches", "fetch", "split-dataset", "stratified-split"} & set(names)


def test_an_unknown_name_lists_the_nearest():
    """A typing error must say what was probably meant."""
    with pytest.raises(UnknownName, match=r"adamv.*adamw"):
        resolve("optim", "adamv")


def test_an_unknown_argument_lists_the_nearest():
    """A misspelt argument must be refused before anything runs."""
    with pytest.raises(InvalidInput, match=r"weight_dekay.*weight_decay"):
        resolve("optim", "adamw(weight_dekay=0.1)")


@pytest.mark.parametrize("name", ["os:system", "no.such.module:Thing"])
def test_an_import_path_takes_the_object_or_says_why_not(name):
    """`package.module:Object` is how users bring their own code; it must import, and never call."""
    if name == "os:system":
        import os

        assert resolve("models", name) is os.system
    else:
        with pytest.raises(UnknownName, match="cannot import"):
            resolve("models", name)


def test_every_known_name_resolves():
    """A name that `known` lists but `resolve` refuses would be a lie in every error message."""
    for seam in ("losses", "optim", "schedules", "data", "models", "rules", "probes"):
        for name in known(seam):
            assert callable(resolve(seam, name)), f"{seam}: {name}"


def test_import_assay_does_not_import_torch():
    """`import assay` must stay cheap until a part is touched."""
    code = "import sys, assay, assay.cards, assay.names; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

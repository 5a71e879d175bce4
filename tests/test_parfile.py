"""Reading and changing STIR parameter files."""

import os

import pytest

from sirf_diffusion.files.parfile import ParFile, ParFileError, fold

TEXT = """\
OSMAPOSLParameters :=
; a comment with ${NOTHING} in it
objective function type:= PoissonLogLikelihoodWithLinearModelForMeanAndProjData
PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters:=
  input file := ${DATA}/prompts.hs
  projector pair type := Matrix
    Projector Pair Using Matrix Parameters :=
      Matrix type := Ray Tracing
        Ray tracing matrix parameters :=
          number of rays in tangential direction to trace for each bin := 5
        End Ray tracing matrix parameters :=
    End Projector Pair Using Matrix Parameters :=
  prior type := quadratic
    Quadratic Prior Parameters :=
      penalisation factor := 0.5 ; a remark
      weights := {1, 2.5,3}
    END Quadratic Prior Parameters :=
  subset sensitivity filenames := sens_%d.hv
end PoissonLogLikelihoodWithLinearModelForMeanAndProjData Parameters:=
number of subsets := 4
!NUMBER_OF  subsets := 7
use_subset_sensitivities := 1
output filename prefix := \\
out
initial estimate [2] :=  a file.hv\t
END :=
this is not read := 3
"""

SCORE = """\
  prior type := Diffusion Score
    Diffusion Score Parameters :=
      penalisation factor := 1
    END Diffusion Score Parameters :=
"""


@pytest.fixture
def par():
    return ParFile.parse(TEXT, "x.par", environment={"DATA": "/d"})


def edited(text, old, new):
    assert old in text
    return text.replace(old, new)


def test_values_and_nested_blocks(par):
    objective = par.objective()
    assert objective.text("Input File") == "/d/prompts.hs"
    kind, pair = objective.object("projector pair type")
    assert kind == "matrix"
    name, matrix = pair.object("matrix type")
    assert name == "ray tracing"
    assert matrix.integer("number of rays in tangential direction to trace for each bin") == 5
    prior = par.prior()
    assert prior.value == "quadratic"
    assert prior.block.real("penalisation factor") == 0.5
    assert prior.block.items("weights") == ["1", "2.5", "3"]
    assert par.root.boolean("use subset sensitivities")
    assert par.root.text("output filename prefix") == "out"


def test_the_last_of_two_keys_counts_and_nothing_after_end_is_read(par):
    assert par.root.integer("number of subsets") == 7
    assert "this is not read" not in par.root


def test_indices_and_white_space_of_values(par):
    key = par.root.key("initial estimate")
    assert (key.index, key.value) == (2, "a file.hv")


def test_lines_are_those_of_the_file(par):
    lines = TEXT.splitlines()
    for block, key in par.root.walk():
        assert fold(lines[key.line - 1]).startswith(key.name)
        assert block.line < key.line <= key.last_line < block.last_line
        if key.block is not None:
            assert fold(lines[key.last_line - 1]).startswith("end ")


def test_absent_keys_have_defaults(par):
    assert par.root.integer("number of subiterations", 1) == 1
    assert par.root.text("verbosity") == ""
    assert par.root.object("post-filter type") == ("", None)


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_replacing_the_prior_changes_nothing_else(newline):
    text = TEXT.replace("\n", newline)
    par = ParFile.parse(text, environment={"DATA": "/d"})
    changed = par.with_prior(SCORE)
    again = ParFile.parse(changed, environment={"DATA": "/d"})
    assert again.prior().value == "Diffusion Score"
    old = par.lines_of(par.prior())
    assert changed.replace(SCORE, "") == text.replace(old, "")
    assert again.with_prior(old) == text


def test_removing_and_adding_a_prior(par):
    without = ParFile.parse(par.with_prior(None), environment={"DATA": "/d"})
    assert without.prior() is None
    added = ParFile.parse(without.with_prior(SCORE), environment={"DATA": "/d"})
    assert added.prior().block.real("penalisation factor") == 1
    assert [key.name for key in added.objective().keys][-1] == "prior type"


def test_the_prior_is_replaced_where_the_file_has_two(par):
    text = par.with_prior(SCORE + par.lines_of(par.prior()))
    changed = ParFile.parse(text, environment={"DATA": "/d"}).with_prior(SCORE)
    assert changed.count("prior type") == 1
    assert changed == par.with_prior(SCORE)


@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ("quadratic\n", "quadratic\n\n", 13, "drops the object"),
    ("quadratic\n", "quadratic\n; strong\n", 13, "drops the object"),
    ("    Quadratic Prior Parameters :=\n", "", 13, "no block"),
    ("    END Quadratic Prior Parameters :=\n", "", 13, "no block"),
    ("  prior type := quadratic\n", "  ;prior type := quadratic\n", 14, "belongs to no object"),
    ("number of subsets := 4", "number of subsets = 4", 20, "no ':='"),
    ("${DATA}", "${NODATA}", 5, "no variable NODATA"),
    ("OSMAPOSLParameters :=\n", "; mine\nOSMAPOSLParameters :=\n", 2, "first line"),
    ("OSMAPOSLParameters :=\n", "\nOSMAPOSLParameters :=\n", 2, "first line"),
])  # fmt: skip
def test_what_stir_would_silently_read_otherwise_is_an_error_with_file_and_line(old, new, line, message):
    text = edited(TEXT, old, new)
    with pytest.raises(ParFileError, match=rf"^x\.par:{line}: .*{message}"):
        ParFile.parse(text, "x.par", environment={"DATA": "/d"})
    lenient = ParFile.parse(text, "x.par", environment={"DATA": "/d"}, strict=False)
    assert lenient.problems[0].line == line


@pytest.mark.parametrize(("old", "new", "line", "message"), [
    ("\nEND :=\nthis is not read := 3", "", 25, "ends without"),
    ("number of subsets", "a remark\nnumber of", 20, "':='"),
])  # fmt: skip
def test_what_stirs_own_samples_have_is_only_a_warning(caplog, old, new, line, message):
    par = ParFile.parse(TEXT.replace(old, new, 1), "x.par", environment={"DATA": "/d"})
    assert [(p.line, p.harmless) for p in par.problems] == [(line, True)]
    assert f"x.par:{line}: " in caplog.text
    assert message in caplog.text


def test_lines_of_blanks_may_stand_before_a_block(par):
    text = edited(TEXT, "quadratic\n", "quadratic\n  \t\n")
    assert ParFile.parse(text, environment={"DATA": "/d"}).prior().block.real("penalisation factor") == 0.5


@pytest.mark.parametrize("value", ["none", "None"])
def test_none_is_no_prior(value):
    objective = f"objective function type := P\nP Parameters :=\nprior type := {value}\nEnd P Parameters :=\n"
    assert ParFile.parse(f"OSSPSParameters :=\n{objective}END :=\n").prior() is None


@pytest.mark.parametrize(("value", "method"), [
    ("4.5", "integer"), ("x", "real"), ("3 4", "integer"), ("2", "boolean"), ("{1,2", "items"),
])  # fmt: skip
def test_values_of_the_wrong_kind_are_errors_with_the_line(value, method):
    par = ParFile.parse(f"AParameters :=\n\nb := {value}\nEND :=\n", "y.par")
    with pytest.raises(ParFileError, match=r"^y\.par:3: 'b' "):
        getattr(par.root, method)("b")


def test_shapes_and_filters_end_as_stir_ends_them():
    shape = "generate_image Parameters :=\nshape type := box\nBox Parameters :=\na := 1\nEND :=\nvalue := 2\nEND :=\n"
    assert ParFile.parse(shape).root.integer("value") == 2
    postfilter = "Postfilter type := X\nX Parameters :=\nEND X Parameters :=\n"
    text = f"PostFilteringParameters :=\n{postfilter}End PostFiltering Parameters :=\n"
    assert ParFile.parse(text).root.object("postfilter type")[0] == "x"


def test_variables_within_variables_and_endless_ones():
    text = "AParameters :=\nb := ${C}\nEND :=\n"
    assert ParFile.parse(text, environment={"C": "${D}", "D": "3"}).root.integer("b") == 3
    with pytest.raises(ParFileError, match=r":2: .*contains itself"):
        ParFile.parse(text, environment={"C": "${D}", "D": "${C}"})


def test_files_that_are_none(tmp_path):
    with pytest.raises(ParFileError, match="cannot read"):
        ParFile.read(tmp_path / "absent.par")
    binary = tmp_path / "b.par"
    binary.write_bytes(b"AParameters :=\n\0\n")
    with pytest.raises(ParFileError, match="binary"):
        ParFile.read(binary)
    with pytest.raises(ParFileError, match="not a parameter file"):
        ParFile.parse("hello\n")
    with pytest.raises(ParFileError, match="not a parameter file"):
        ParFile.parse("")


def test_undecodable_bytes_survive(tmp_path):
    path = tmp_path / "latin.par"
    path.write_bytes(b"AParameters :=\nfile := caf\xe9.hs\nEND :=\n")
    par = ParFile.read(path)
    assert par.text.encode("utf-8", "surrogateescape") == path.read_bytes()
    with pytest.raises(ParFileError, match="OSMAPOSL or OSSPS"):
        par.objective()


@pytest.mark.parametrize(("text", "message"), [
    ("AParameters :=\n" + "\n" * 20_001, "lines, more than"),
    ("AParameters :=\n" + "b" * 300 + " := 1\nEND :=\n", "a key of more than"),
    ("AParameters :=\nb := " + "x\\\n" * 40_000, "lines, more than"),
    ("AParameters :=\nb := " + "x" * 70_000 + "\nEND :=\n", "a line of 70005 characters"),
    ("AParameters :=\n" + "prior type := x\nx parameters :=\n" * 60 + "end x parameters :=\n" * 60, "blocks within"),
], ids=["lines", "key", "continuations", "line", "depth"])  # fmt: skip
def test_files_beyond_what_stir_has_use_for_are_refused(text, message):
    with pytest.raises(ParFileError, match=message):
        ParFile.parse(text)


@pytest.mark.parametrize("text", [
    "b :=\n" * 19_000, "prior type := x\n" * 19_000, "b := " + "${" * 30_000 + "\n", "b" + " " * 60_000 + ":= x\n",
], ids=["empty keys", "objects", "variables", "blanks"])  # fmt: skip
def test_long_files_take_time_in_proportion(text):
    """Each of these took minutes once; a test that hangs fails by the runner's own limit."""
    assert ParFile.parse(f"AParameters :=\n{text}END :=\n", strict=False).root.keys


@pytest.mark.parametrize("value", ["1_000", "inf", "nan", "9" * 400])
def test_numbers_that_stir_would_not_read(value):
    par = ParFile.parse(f"AParameters :=\nb := {value}\nEND :=\n")
    with pytest.raises(ParFileError, match="must be a number"):
        par.root.real("b")


def test_pipes_and_folders_are_no_parameter_files(tmp_path):
    os.mkfifo(tmp_path / "pipe.par")
    for path in (tmp_path / "pipe.par", tmp_path):
        with pytest.raises(ParFileError, match="no regular file"):
            ParFile.read(path)

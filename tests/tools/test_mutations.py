"""Mutants of C++: of code alone, drawn by seed."""

from tools.mutations import Mutant, blank, draw, mutations

TOY = """\
// a < b && c
#include "kv/toy.h"

static const int kTable[] = {
    1, 2,
    3, 4,
};

bool fits(int count, int limit) {
  std::vector<std::map<int, int>> seen;
  std::array<int, 4> few;
  seen.reserve(count + 1);
  check(count >= 0, "can't fit ", count + 2, " blocks");  // count < 0
  for (int i = 0; i < limit; ++i) note(i, count);
  if (count > limit || !ready_) return false;
  for (int i : seen) {
    ++num_fits_;
  }
  last_ = limit;
  return room("a + b") == count;
}
"""


def changes(line: int) -> list[str]:
    """What a line of TOY may become, without its indentation."""
    return [mutant.after.strip() for mutant in mutations("csrc/kv/toy.cc", TOY) if mutant.line == line]


def applied(mutant: Mutant) -> str:
    lines = TOY.split("\n")
    before = mutant.before.split("\n")
    assert lines[mutant.line - 1 : mutant.line - 1 + len(before)] == before
    return "\n".join(lines[: mutant.line - 1] + [mutant.after] + lines[mutant.line - 1 + len(before) :])


def test_blanked_code_keeps_its_offsets_and_nothing_that_is_no_code() -> None:
    code = blank(TOY)
    assert [len(line) for line in code.split("\n")] == [len(line) for line in TOY.split("\n")]
    assert "include" not in code and "a + b" not in code and "blocks" not in code and "count < 0" not in code


def test_comments_preprocessor_lines_tables_templates_and_reservations_are_left_alone() -> None:
    assert {mutant.line for mutant in mutations("csrc/kv/toy.cc", TOY)} == {13, 14, 15, 16, 17, 19, 20}


def test_of_a_check_its_condition_or_the_whole_is_changed_but_not_its_message() -> None:
    message = ', "can\'t fit ", count + 2, " blocks");  // count < 0'
    assert changes(13) == [
        ";  // count < 0",
        f"check(count < 0{message}",
        f"check(count > 0{message}",
        f"check(count >= 1{message}",
    ]


def test_a_guard_is_negated_deleted_always_taken_and_its_operators_are_changed() -> None:
    assert set(changes(15)) == {
        "if (!(count > limit || !ready_)) return false;",
        "if (false) return false;",
        "if (true) return false;",
        "if (count >= limit || !ready_) return false;",
        "if (count <= limit || !ready_) return false;",
        "if (count > limit && !ready_) return false;",
        "if (count > limit || ready_) return false;",
        "if (count > limit || !ready_) return true;",
    }


def test_a_loop_loses_its_body_has_other_ends_and_swapped_arguments_but_never_runs_backwards() -> None:
    assert set(changes(14)) == {
        "for (int i = 0; i < limit; ++i) ;",
        "for (int i = 1; i < limit; ++i) note(i, count);",
        "for (int i = 0; i <= limit; ++i) note(i, count);",
        "for (int i = 0; i >= limit; ++i) note(i, count);",
        "for (int i = 0; i < limit; ++i) note(count, i);",
    }


def test_statements_are_deleted_and_a_truth_value_is_flipped() -> None:
    assert set(changes(17)) == {";", "--num_fits_;"}
    assert set(changes(16)) == {"for (int i : seen) {}"} and set(changes(19)) == {";"}
    assert set(changes(20)) == {'return !(room("a + b") == count);', 'return room("a + b") != count;'}


def test_a_message_joined_of_parts_hides_no_bracket_from_what_stands_around_it() -> None:
    text = """\
void f() {
  for (int block : taken_) {
    throw Error(concat("block ", block, " is free (twice)"));
  }
  ++num_fits_;
}
"""
    found = {(m.line, len(m.before.split("\n")), m.after.strip()) for m in mutations("csrc/kv/toy.cc", text)}
    assert found == {(2, 3, "for (int block : taken_) {}"), (3, 1, ";"), (5, 1, ";"), (5, 1, "--num_fits_;")}


def test_each_mutant_changes_the_file_at_its_line() -> None:
    texts = [applied(mutant) for mutant in mutations("csrc/kv/toy.cc", TOY)]
    assert len(set(texts)) == len(texts) and TOY not in texts


def test_a_draw_is_repeated_by_its_seed_and_takes_as_many_from_each_room() -> None:
    sources = {"csrc/kv/a.cc": TOY, "csrc/kv/b.cc": TOY, "csrc/engine/c.cc": TOY}
    drawn = draw(sources, seed=7, count=6)
    assert drawn == draw(sources, seed=7, count=6) != draw(sources, seed=8, count=6)
    assert [mutant.file.split("/")[1] for mutant in drawn] == ["engine"] * 3 + ["kv"] * 3
    assert len({(mutant.file, mutant.line) for mutant in drawn}) == 6

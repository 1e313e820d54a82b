"""Files that change while a run is under way are planned anew, a few times.

On 117a9f2 a changed file ended the run without a publication.
"""

from __future__ import annotations

from wordmask.flows.execution.dispatcher import Outcome
from wordmask.flows.execution.rounds import REPLANS, run_rounds
from wordmask.schemas.queries import InputError
from wordmask.schemas.runs import Plan, RowRange, Shard


def plan_of(*names: str) -> Plan:
    shards = tuple(
        Shard(
            shard_id=name,
            file=name,
            name=name,
            fingerprint="f",
            ranges=(RowRange(0, 0, 2),),
            first_row=0,
            model_revision="m",
            settings_hash="s",
        )
        for name in names
    )
    return Plan(shards=shards, done=frozenset(), files=len(names), input_bytes=1)


def changed(name: str = "a") -> Outcome:
    return Outcome(changed_files={name})


def test_a_changed_file_is_planned_anew_and_what_was_done_counts_for_the_run() -> None:
    outcomes = [Outcome(changed_files={"a"}, done={"b"}), Outcome(done={"a2"})]
    first, second = plan_of("a", "b"), plan_of("a2", "b")
    seen: list[Plan] = []
    plan, outcome = run_rounds(first, lambda _: outcomes.pop(0), lambda: second, seen.append)
    assert (plan.shards, outcome.changed_files) == (second.shards, set())
    (planned,) = seen
    assert [shard.shard_id for shard in planned.pending] == ["a2"], "b was done in this run"
    assert [shard.shard_id for shard in plan.pending] == ["a2", "b"], "and both by this run"


def test_a_file_that_changes_all_the_time_is_given_up() -> None:
    ran: list[Plan] = []

    def run(plan: Plan) -> Outcome:
        ran.append(plan)
        return changed()

    _, outcome = run_rounds(plan_of("a"), run, lambda: plan_of("a"))
    assert (len(ran), outcome.changed_files) == (1 + REPLANS, {"a"})


def test_nothing_is_planned_anew_without_need_time_or_way() -> None:
    def unreadable() -> Plan:
        raise InputError("half written")

    def gone() -> Plan:
        raise FileNotFoundError("gone since it was listed")

    def never() -> Plan:
        raise AssertionError

    plan = plan_of("a")
    spent = Outcome(changed_files={"a"}, left=list(plan.shards))
    for outcome, replan in [
        (Outcome(), never),
        (spent, never),
        (changed(), None),
        (changed(), unreadable),
        (changed(), gone),
    ]:
        found = run_rounds(plan, lambda _, outcome=outcome: outcome, replan)
        assert (found[0].shards, found[1]) == (plan.shards, outcome)


def test_a_changed_file_is_left_to_the_next_run_where_the_budget_left_something() -> None:
    plan = plan_of("a", "b", "c")
    a, b, c = plan.shards
    failures = [(a, "changed"), (c, "a damaged page")]
    spent = Outcome(changed_files={"a"}, failures=failures, left=[b])
    _, outcome = run_rounds(plan, lambda _: spent, lambda: plan)
    assert (outcome.left, outcome.changed_files) == ([b, a], set())
    assert outcome.failures == [(c, "a damaged page")]

"""The loads of several replicas as one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from runtime.messages import LaneStats, Stats


def total(all_stats: Sequence[Stats]) -> Stats | None:
    """Every count added up; None without any report."""
    if not all_stats:
        return None

    def count(name: str) -> int:
        return sum(getattr(stats, name) for stats in all_stats)

    by_blends: Counter[int] = Counter()
    for stats in all_stats:
        by_blends.update(dict(stats.n_steps_by_blends))
    return Stats(
        n_running=count("n_running"),
        n_waiting=count("n_waiting"),
        n_kv_cells_used=count("n_kv_cells_used"),
        n_kv_cells_kept=count("n_kv_cells_kept"),
        n_steps=count("n_steps"),
        n_decoded_tokens=count("n_decoded_tokens"),
        n_prompt_tokens=count("n_prompt_tokens"),
        n_cached_tokens=count("n_cached_tokens"),
        n_steps_by_blends=tuple(sorted(by_blends.items())),
        lanes=_total_lanes([stats.lanes for stats in all_stats]),
        running_blends=tuple(dict.fromkeys(blend for stats in all_stats for blend in stats.running_blends)),
        waiting_blends=tuple(dict.fromkeys(blend for stats in all_stats for blend in stats.waiting_blends)),
        n_drafted_tokens=count("n_drafted_tokens"),
        n_accepted_tokens=count("n_accepted_tokens"),
    )


def _total_lanes(all_lanes: Sequence[LaneStats]) -> LaneStats:
    return LaneStats(
        n_empty=sum(lanes.n_empty for lanes in all_lanes),
        n_filling=sum(lanes.n_filling for lanes in all_lanes),
        n_used=sum(lanes.n_used for lanes in all_lanes),
        n_idle=sum(lanes.n_idle for lanes in all_lanes),
        n_fills=sum(lanes.n_fills for lanes in all_lanes),
        resident=tuple(dict.fromkeys(digest for lanes in all_lanes for digest in lanes.resident)),
    )

"""Which learning rate a method gets: tried with the first seed, chosen on validation classes, run with the others."""
import collections

Search = collections.namedtuple("Search", "size method rate is_chosen waiting over results notes")
Search.__doc__ = """How far the search is for one size and method.

rate: the best one so far, None while none is over or all failed. is_chosen: whether the search is at its end; no rate
is chosen without one that failed for a passing reason.
waiting: [(rate, seed)], runs that are known to be needed and not over. over: [(rate, seed, ``Result``)].
results: {seed: ``Result``} at ``rate``, without those that failed. notes: sentences for the table.
"""


def choose_rate(validation):
    """Return the learning rate with the highest recall on the validation classes; of equals the lowest one.

    This is the only place where a rate is chosen, and it is given figures of the validation classes only: the test
    classes can have no part in the choice.

    Args:
        validation: {rate: recall of the validation classes, in the epoch that they choose; None where the run failed,
            which is worse than all}.

    Returns:
        the rate; None if all failed.
    """
    done = {rate: value for rate, value in validation.items() if value is not None}
    return min(done, key=lambda rate: (-done[rate], rate)) if done else None


def one_further(grid, tried, best):
    """Return the rate to try beside the best one, if that is the lowest or highest of the ``grid``: a step of the grid
    beyond it; None if it is not, or that was tried."""
    if len(grid) < 2 or best not in (grid[0], grid[-1]):
        return None
    beside = grid[1] if best == grid[0] else grid[-2]
    rate = float("{:.2g}".format(best * best / beside))
    return None if rate in tried else rate


def search(size, method, grid, seeds, outcome, extend):
    """Return the ``Search`` as far as it is.

    Args:
        grid: rates from low to high. seeds: the first one searches.
        outcome: (rate, seed) -> ``Result``, or None while it is not over.
        extend: whether to go one step beyond either end of the grid.
    """
    first, others = seeds[0], seeds[1:]
    tried = list(grid)
    while True:
        found = {rate: outcome(rate, first) for rate in tried}
        waiting = [(rate, first) for rate in tried if found[rate] is None]
        best = choose_rate({rate: result.validation for rate, result in found.items() if result})
        is_chosen = all(result and not result.again for result in found.values())
        further = one_further(grid, tried, best) if extend and is_chosen else None
        if further is None:
            break
        tried.append(further)
    over = [(rate, first, result) for rate, result in found.items() if result]
    if is_chosen and best is not None:
        for seed in others:
            result = outcome(best, seed)
            if result is None:
                waiting.append((best, seed))
            else:
                over.append((best, seed, result))
    results = {seed: result for rate, seed, result in over if rate == best and result.failure is None}
    return Search(size, method, best, is_chosen, waiting, over, results, _notes(tried, found, best, over))


def _notes(tried, found, best, over):
    missing = sum(result is None or result.again for result in found.values())
    notes = ["{} of {} rates so far.".format(len(tried) - missing, len(tried))] if missing else []
    if not missing and best in (min(tried), max(tried)):
        notes.append("The best rate is the {} of those tried.".format(
            "only one" if len(tried) == 1 else "lowest" if best == min(tried) else "highest"))
    return notes + ["Failed at {:g}, seed {}: {}".format(rate, seed, result.failure)
                    for rate, seed, result in over if result.failure is not None]

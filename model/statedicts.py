"""The weights of one network among all that a file holds.

Training programs put a state dict into an entry of a larger dict. DistributedDataParallel ("module."), torch.compile
("_orig_mod.") and Lightning (the attribute's name, "model.") put words before the names, and other networks or losses
may have their weights in the same dict. Here the weights of one network are found by its own names.
"""
import collections
import hashlib
import json

import torch

__all__ = ["NOTES", "NOTHING", "Found", "find_networks", "described", "digest_of_network", "digest_of_weights"]

WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
DEEPEST = 3  # dicts inside dicts
NOTES = "rkd"  # our entry in what PyTorch keeps beside the tensors of a state dict, its ``_metadata``
SHOWN = 3

Found = collections.namedtuple("Found", "weights entry prefix inner others notes")
Found.__doc__ = """Tensors that may be a network's.

weights: {name, as the network itself has it: tensor}.
entry: where in the file they are, "" for the top. prefix: what stands before the names there.
inner: the wrappers' words inside the names. others: names of the tensors beside them that are left out.
notes: what is noted of the network (see ``LinearEmbedding``): {name: value} in our files, or whatever is there; None.
"""
NOTHING = Found({}, "", "", set(), [], None)


def find_networks(content, parts):
    """Return a list of ``Found``: all tensors, in nested dicts, whose names begin, after a common prefix, with one of
    ``parts``, the names of a network's own modules.

    Raises:
        ValueError: a name is there twice, with a wrapper's word and without.
    """
    found = []
    for entry, tensors in _dicts(content):
        names = [name for name, value in dict.items(tensors)
                 if isinstance(name, str) and isinstance(value, torch.Tensor)]
        groups, inner = collections.defaultdict(dict), collections.defaultdict(set)
        for name in names:
            words = name.split(".")
            for place, word in enumerate(words):
                if word in parts:
                    prefix, own = ".".join(words[:place]), ".".join(w for w in words[place:] if w not in WRAPPERS)
                    if own in groups[prefix]:
                        raise ValueError("{} twice, the second time as {}".format(own, name))
                    groups[prefix][own] = name
                    inner[prefix].update(WRAPPERS.intersection(words[place:]))
        for prefix, group in groups.items():
            taken = set(group.values())
            found.append(Found({own: tensors[name] for own, name in group.items()}, entry, prefix, inner[prefix],
                               [name for name in names if name not in taken], _notes(tensors, prefix)))
    return found


def _dicts(content):
    """Yield (entry, dict) of all dicts in ``content``, each once, the outer ones first."""
    seen, waiting = set(), collections.deque([((), content)])
    while waiting:
        entry, value = waiting.popleft()
        if isinstance(value, dict) and id(value) not in seen:
            seen.add(id(value))
            yield ".".join(entry), value
            if len(entry) < DEEPEST:
                waiting.extend((entry + (name,), inner) for name, inner in dict.items(value) if isinstance(name, str))


def _notes(state_dict, prefix):
    metadata = getattr(state_dict, "_metadata", None)
    module = metadata.get(prefix) if isinstance(metadata, dict) else None
    return module.get(NOTES) if isinstance(module, dict) else None


def described(found):
    """Return in words what had to be done to get at the weights; "" if nothing."""
    words = ["from its entry " + found.entry] if found.entry else []
    if found.prefix:
        words.append("without the prefix {}. of its names".format(found.prefix))
    if found.inner:
        words.append("without {} inside its names".format(" and ".join(word + "." for word in sorted(found.inner))))
    if found.others:
        words.append("without {} other tensor{} ({}{})".format(
            len(found.others), "s" if len(found.others) > 1 else "", ", ".join(found.others[:SHOWN]),
            ", ..." if len(found.others) > SHOWN else ""))
    return ", ".join(words)


def digest_of_weights(network):
    """Return a digest of the names, types, shapes and values in the state dict of ``network``."""
    digest = hashlib.sha256()
    for name, value in network.state_dict().items():
        value = value.detach().cpu().contiguous()
        digest.update("{} {} {}\n".format(name, value.dtype, tuple(value.shape)).encode())
        digest.update(value.view(-1).numpy().tobytes())
    return digest.hexdigest()


def digest_of_network(network):
    """Return a digest of all that decides what a ``LinearEmbedding`` makes of a picture: its weights, and what it notes
    beside them (normalisation, pooling, how pictures are resized)."""
    notes = _notes(network.state_dict(), "")
    notes.setdefault("resize", "square")  # a network that doesn't say it means this
    return hashlib.sha256((digest_of_weights(network) + json.dumps(notes, sort_keys=True)).encode()).hexdigest()

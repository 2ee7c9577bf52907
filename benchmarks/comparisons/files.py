"""What is compared: comparison files and files of methods (INI), and the command of each run that follows from them."""
import argparse
import collections
import configparser
import os
import re
import shlex

from engine.arguments import not_negative_int, positive_float, positive_int
from engine.errors import UsageError
from engine.networks import DATA_OPTIONS, HELD_OUT
from engine.rundir.files import CHECKPOINT

HERE = os.path.dirname(os.path.abspath(__file__))
METHODS = os.path.join(HERE, "methods.ini")
SECTIONS = ("compare", "data", "training", "student", "teacher", "teacher as it comes")
# compare.py gives these to each run by itself.
OWN_OF_TEACHER = {"select", "no_train_recall", "threads", "save_dir", "resume", "overwrite", "mode", "teacher_load"}
OWN = OWN_OF_TEACHER | {"embedding_size", "lr", "seed"}
OF_DATA = {*DATA_OPTIONS, HELD_OUT, "metrics"}  # the teacher must see and hold out the classes that its students do

Trial = collections.namedtuple("Trial", "directory script options")
Trial.__doc__ = """A run of a script.

directory: its --save_dir. script: run.py or run_distill.py. options: {name: [words]}, all others.
"""

Comparison = collections.namedtuple(
    "Comparison", "data training teacher trains_teacher student methods sizes rates seeds")
Comparison.__doc__ = """What is compared.

data, training, teacher, student: {option: [words]} of all runs, of all trainings, of the teacher, of all students.
trains_teacher: whether the teacher is trained first, or taken as it comes.
methods: {name: {option: [words]}}. sizes, rates, seeds: numbers, the rates from low to high.
"""


def read_comparison(path, methods_path, variables):
    """Return the ``Comparison`` in the file ``path``.

    Args:
        methods_path: the file of methods; all of them are compared where ``path`` names none.
        variables: {name: value} for each %(name)s in the options.

    Raises:
        UsageError: a file can't be read or used; names it and what is wrong.
    """
    variables = _Variables(variables)
    sections, known = _read(path, variables), _read_methods(methods_path, variables)
    idle = sorted(set(variables) - variables.used)
    if idle:
        raise UsageError("--set {0} does nothing: there is no %({0})s in {1}; leave it out".format(idle[0], path))
    unknown = sorted(set(sections) - set(SECTIONS))
    teachers = [name for name in ("teacher", "teacher as it comes") if name in sections]
    if unknown or len(teachers) != 1 or not {"compare", "data", "student"} <= set(sections):
        raise UsageError("{}: {}the sections are [compare], [data], [training], [student], and [teacher] or [teacher "
                         "as it comes]".format(path, "[{}] is none; ".format(unknown[0]) if unknown else ""))
    compare = sections["compare"]
    wrong = sorted(set(compare) - {"sizes", "rates", "seeds", "methods"})
    if wrong:
        raise UsageError("{}: [compare] has no {}; there are sizes, rates, seeds, methods".format(path, wrong[0]))
    of_data = OF_DATA | set(sections["data"])
    for name in set(sections) - {"compare"}:
        _refuse_misplaced(path, "[{}]".format(name), sections[name], OWN_OF_TEACHER if name in teachers else OWN,
                          () if name == "data" else of_data)
    for name, options in known.items():
        _refuse_misplaced(methods_path, name, options, OWN, of_data)
    _numbers(path, "data", sections["data"], HELD_OUT, positive_int)  # these classes choose rates and epochs
    _numbers(path, teachers[0], sections[teachers[0]], "embedding_size", not_negative_int)
    if not sections[teachers[0]].get("base"):
        raise UsageError("{}: [{}] needs base".format(path, teachers[0]))
    names = compare.get("methods") or list(known)
    refuse_unknown(names, known, methods_path)
    return Comparison(
        sections["data"], sections.get("training", {}), sections[teachers[0]], teachers[0] == "teacher",
        sections["student"], {name: known[name] for name in names},
        _numbers(path, "compare", compare, "sizes", not_negative_int),
        sorted(_numbers(path, "compare", compare, "rates", positive_float)),
        _numbers(path, "compare", compare, "seeds", not_negative_int))


class _Variables(dict):
    """{name: value} that knows which names were asked for, ``used``."""

    def __init__(self, variables):
        super().__init__(variables)
        self.used = set()

    def __getitem__(self, name):
        self.used.add(name)
        return super().__getitem__(name)


def _refuse_misplaced(path, place, options, own, of_data):
    for name in options:
        if name in own:
            raise UsageError("{}: {} has {}, which compare.py gives by itself; leave it out".format(path, place, name))
        if name == "recall":
            raise UsageError("{}: {} has recall, but the tables have Recall@1; leave it out".format(path, place))
        if name in of_data:
            raise UsageError("{}: {} has {}, which belongs in [data]: teacher and students have it in common".format(
                path, place, name))


def refuse_unknown(names, known, path):
    """Refuse (UsageError) names of methods that are not among those known from a file."""
    for name in names:
        if name not in known:
            raise UsageError("{} has no method {}; it has {}".format(path, name, ", ".join(known)))


def _read(path, variables):
    """Return {section: {key: [words]}}."""
    parser = configparser.ConfigParser(interpolation=None, allow_no_value=True, inline_comment_prefixes=("#",))
    parser.optionxform = str
    try:
        with open(path, encoding="utf-8-sig") as file:
            parser.read_file(file)
    except OSError as error:
        raise UsageError("{} can't be read ({})".format(path, error.strerror)) from None
    except (configparser.Error, UnicodeDecodeError) as error:
        raise UsageError("{} is no INI file ({})".format(path, " ".join(str(error).split()))) from None
    return {section: {key: _words(path, key, value, variables) for key, value in parser.items(section)}
            for section in parser.sections()}


def _words(path, key, value, variables):
    try:
        # Split first: a path in a variable may have spaces.
        return [word % variables for word in shlex.split(value or "")]
    except KeyError as error:
        name = error.args[0]
        raise UsageError("{}: {} needs --set {}=VALUE".format(path, key, name)) from None
    except (ValueError, TypeError) as error:
        raise UsageError("{}: {} = {} can't be read ({}); a % itself is %%".format(path, key, value, error)) from None


def _read_methods(path, variables):
    sections = _read(path, variables)
    if list(sections) != ["methods"]:
        raise UsageError("{}: a file of methods has one section, [methods], with lines NAME = OPTIONS".format(path))
    methods = {}
    for name, words in sections["methods"].items():
        if not re.match(r"[\w.-]+$", name):
            raise UsageError("{}: {!r} is no name of a method; take letters, digits, _ and -".format(path, name))
        methods[name] = _options(path, name, words)
    return methods


def _options(path, name, words):
    """Return {option: [words]} of the words of a command line."""
    options = {}
    for word in words:
        if word.startswith("--"):
            option, *value = word[2:].split("=", 1)
            options[option] = value
        elif options:
            options[option].append(word)
        else:
            raise UsageError("{}: {} begins with {}, which is no option".format(path, name, word))
    if not options:
        raise UsageError("{}: {} has no options".format(path, name))
    return options


def _numbers(path, section, options, key, kind):
    """Return the numbers of a key, each once; ``kind`` is a type of ``engine.arguments``."""
    if not options.get(key):
        raise UsageError("{}: [{}] needs {}".format(path, section, key))
    try:
        return list(dict.fromkeys(kind(word) for word in options[key]))
    except argparse.ArgumentTypeError as error:
        raise UsageError("{}: [{}] {}: {}".format(path, section, key, error)) from None


def teacher_trial(comparison, directory):
    """Return the ``Trial`` that trains the teacher or, where it is taken as it comes, measures it."""
    options = dict(comparison.data)
    if comparison.trains_teacher:
        options = {"mode": ["train"], **options, **comparison.training, "select": ["val"]}
    else:
        options = {"mode": ["eval"], **options}
    return Trial(os.path.join(directory, "teacher"), "run.py",
                 {**options, **comparison.teacher, "no_train_recall": [], "threads": ["1"]})


def student_trial(comparison, directory, size, method, rate, seed):
    """Return the ``Trial`` that trains a student."""
    if comparison.trains_teacher:
        teacher = {"teacher_load": [os.path.join(directory, "teacher", "best.pth")]}
    else:
        teacher = {"teacher_" + name: words for name, words in comparison.teacher.items()}
    place = os.path.join(directory, "d{}".format(size), method, "lr{:g}".format(rate), "seed{}".format(seed))
    return Trial(place, "run_distill.py", {
        **comparison.data, **comparison.training, **comparison.student, **teacher, **comparison.methods[method],
        "embedding_size": [str(size)], "lr": ["{:g}".format(rate)], "seed": [str(seed)], "select": ["val"],
        "no_train_recall": [], "threads": ["1"]})


def argv_of(trial):
    """Return the options of a run as words of a command line. A run that trains goes on where it was stopped; what is
    there without a state is the rest of one that failed."""
    words = [word for name, values in trial.options.items() for word in ["--" + name] + values]
    if only_measures(trial):
        return words
    begun = os.path.exists(os.path.join(trial.directory, CHECKPOINT))
    return words + ["--save_dir", trial.directory, "--resume" if begun else "--overwrite"]


def only_measures(trial):
    """Whether a ``Trial`` measures a teacher that is taken as it comes."""
    return trial.options.get("mode") == ["eval"]

"""The parts of compare.py, and what it compares: the .ini files.

    files    reads comparisons and methods; the trials that follow from them
    trials   runs trials as processes; what each has left
    search   which learning rate a method gets
    tables   table.md and table.csv
    plot     plot.svg
"""

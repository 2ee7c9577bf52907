"""Galleries: the embeddings of many pictures in a file, made once and searched often. The modules of this package:

    embedding   --mode embed: every picture becomes a row
    parts       the pictures of all splits, in the order of the rows
    partial     the rows so far, from which the same command goes on
    files       the gallery itself, written and read
    arrays      NumPy's arrays in files, block by block
    search      --mode search: the nearest of each query, or near-duplicates
    spaces      whose embeddings may search in whose gallery
    indexes     what finds the nearest: our own, or a package's
"""

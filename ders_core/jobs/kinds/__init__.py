"""One file per kind of job: parameters, steps, a thin call of the library, and the typed result.

`ders_core.jobs.kind.KINDS` finds the files here by itself, and other distributions' kinds by the
entry points of this package's name.
"""

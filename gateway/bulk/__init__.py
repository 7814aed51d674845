"""De-identification of whole folders: ``gateway deidentify IN OUT``.

::

    walk -> workers (one file each at a time) -> finish -> manifest
    places     where things are read and written, and what must not overlap
    names      what outputs are called, by the gateway's own keyed hashes
    walk       the files of a folder, one after the other
    one_file   what is done to one file, in a worker's process
    finish     what was written made durable and put in its place
    workers    processes with limits, each of which may die
    manifest   what was done, without PHI; what need not be done again
    crosswalk  which file became which, which is PHI
    run        all of it together
"""

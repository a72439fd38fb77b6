"""One request over a great many pictures or texts: `triptych embed --batch INPUT --out DIR`.

The input is cut into parts once. Each part is computed by a process that holds the model, written
aside, synced and renamed; then it is entered in `manifest.jsonl`. A pass that was killed does again
only the parts that are not entered, so that no row is lost and none is there twice.

In reading order: `settings.py` (the options), `inputs.py` (an input as slices), `rows.py` (the rows
of a slice), `compute.py` (what is computed of them), `outputs.py` (the files of a part), `plan.py`
and `manifest.py` (what is to be done, and what is), `workers.py` (here, in processes, on Ray) and
`carry_out.py` (a whole pass).
"""

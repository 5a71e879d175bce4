"""Which simulated subjects are for what: training, tuning, results."""

#: Subjects below this are for training.
FIRST_TUNING_SUBJECT = 800
#: Seeds from 9000 on are kept for examples, tests and benchmarks: no recipe may train or validate on them.
FIRST_HELD_OUT_SUBJECT = 9000

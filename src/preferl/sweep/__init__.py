"""sweep: one run for every point of a grid and every seed; one table and one report.

Each run is what ``preferl run`` would do, except that runs share stages: what has the same content (its kind,
its options, and the content of what it reads) is made once. In a sweep over ``reward.learning_rate`` sft and
collect lie in ``base/seed-0/``, the reward models in ``reward.learning_rate=0.001/seed-0/`` and so on: under
the swept keys that reach them, their own and those of the stages that they read. ``stages.json`` in a run's
directory says where each of its stages lies.

preferl sweep --config reward_data_size
"""

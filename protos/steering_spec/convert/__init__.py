"""Protobuf messages <-> types of `steering_spec`: the only place that knows both.

Reading a message checks what a type can't hold (an unset required field, an unknown enum value); everything else is
judged by `steering_spec.admission`. All faults of a message are collected before anything is raised. Of a list that is
longer than its limit, one more than the limit is read: enough for admission to refuse it, and megabytes of empty
messages become no millions of objects.
"""

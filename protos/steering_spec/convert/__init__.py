"""Protobuf messages <-> types of `steering_spec`: the only place that knows both.

Reading a message checks what a type can't hold (an unset required field, an unknown enum value); everything else is
judged by `steering_spec.admission`. All faults of a message are collected before anything is raised.
"""

"""Steering: what is done (`ops`), where (`selectors`), when (`contexts`), and the plan that puts it into a batch."""

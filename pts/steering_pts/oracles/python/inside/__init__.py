"""What runs in the sandbox's own processes. Nothing here imports anything but the standard library and its neighbours.

`launcher` starts (`children`) and watches two processes for each program: one in which the program runs (`program`),
and one in which the tests run (`testing`). Each confines itself first (`confinement`). They speak over pipes (`peer`),
in values that are copied (`values`) and objects that stay where they are (`remote`).
"""

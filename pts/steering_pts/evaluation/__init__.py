"""What steering does to problems that nothing was made from: every arm through the client against a server.

`evaluate` is all of it: `arms` says what is measured, `served` are the vectors, `sampling` asks the server, `forcing`
puts better tokens in, `measuring` does that for all arms, `judging` asks the oracle, `statistics` and `figures` say
what came out, `effects` and `neutral` what else changed; `journal` keeps everything, `report` writes it, `plots` draws
it. `knowledge` is what a run knows of better tokens.
"""

"""One request over several processes: bytes and milliseconds of every program, and what they come to on more devices."""

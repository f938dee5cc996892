"""What a folder of a Dopamine run holds, so that it goes on bit for bit, environment included; no pickle is read."""

"""What a folder of a Dopamine run holds, so that it resumes bit-exactly, environment included; no pickle is read."""

"""Two training loops: everything on the device in one scan, and vector environments of the host in halves."""

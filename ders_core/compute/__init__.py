"""How work is done: devices, threads, buffers, cache-sized pieces, progress."""

"""The tabs of the page, a file each: what it does, and then what it is made of."""

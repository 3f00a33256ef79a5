"""Reading a run: `load`, the terminal table (`table`) and the self-contained HTML page (`html`)."""

from streamfeat.cli import main

main()

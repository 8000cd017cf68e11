const draw = startPlot();
startTicks();
startTable(() => DATA.plot && draw());

/** Libraries as far as the viewer uses them, and the one name that it leaves in a page. */

interface Libraries {
  Plotly: {
    react(area: HTMLElement, data: any[], layout: any, config: any): Promise<any>;
    toImage(figure: any, how: any): Promise<string>;
    purge(area: HTMLElement): void;
    Plots: { resize(area: HTMLElement): void };
  };
  CircuitsVis: { render(id: string, element: any, properties: any): void; AttentionPattern: any };
  cytoscape: (options: any) => import("cytoscape").Core;
}

interface Window extends Partial<Libraries> {
  mechrefusal: {
    data(name: string, value: any): void;
    drawAll(): Promise<any>;
    openHead(head: string, checkpoint?: string, from?: HTMLElement | null): Promise<void>;
  };
}
